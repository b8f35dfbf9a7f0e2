-- Takes back Trumpet 1: everything Trumpet has in this database. What is in the log is lost.
drop schema trumpet cascade;
