"""Servers: the embedded one, and what it takes to provision others. Import the modules themselves;
this package imports nothing, so that each command pays for what it uses."""
