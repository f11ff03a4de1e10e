"""The quality of a policy: rates against another, with intervals."""
