"""A whole run from one configuration: stages that are done once."""
