"""The work of people: tasks in a queue, accounts, and what a team has done."""
