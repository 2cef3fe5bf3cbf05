"""What shows a guest's screen to its user and brings back what is typed and pointed at."""
