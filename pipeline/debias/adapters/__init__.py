"""What trains: a kind of adapter a file, and what is known of the models that they go on."""
