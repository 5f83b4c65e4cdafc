"""The verbs that are more than a call: demo, benchmark, explain, the zoo as tables."""
