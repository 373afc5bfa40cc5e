"""Read models into programs: what every front end shares."""
