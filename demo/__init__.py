"""A tiny generator of coloured shapes and two reward models, so that all of it can be tried at once."""
