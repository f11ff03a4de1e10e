"""How good is a policy? Rates against another, with intervals."""
