"""A fleet of daemons in virtual time: the real decisions, a modelled database, a seed."""
