"""Records as people and machines read them: the terminal table, one self-contained HTML file, JUnit XML."""
