"""Where convolutions are in a program: lift programs into the planner's nodes and lower regions."""
