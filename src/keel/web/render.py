from markupsafe import escape


def to_html(text: str) -> str:
    return f"<p>{escape(text)}</p>"
