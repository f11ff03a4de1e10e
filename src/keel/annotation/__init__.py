"""The work of people: a queue of tasks, accounts, and what a team has done."""
