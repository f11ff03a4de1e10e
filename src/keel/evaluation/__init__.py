"""How good a policy is: rates against another, with intervals."""
