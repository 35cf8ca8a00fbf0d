"""A deployment, from a short description to files in their places.

    description   what is asked for: read from TOML, checked, the rest filled in from the machine
    serverconf    the server's options, each valid for its version; `standpipe up` uses them too
    acl           the users' rules: the commands and keys that our code uses, and nothing else
    certificates  the authority, the server's and the clients' certificates
    kernel        the machine's settings
    way           whether large packets get through to the other servers
    units         systemd units, users, log rotation
    beside        HAProxy, Prometheus, Compose, Kubernetes
    layout        what a file is, and where a server's files are
    bundle        all of it as files, and the secrets that are made once; pure
    keeping       the bundle's folder
    applying      the files put in place, with what they replace kept

This package imports nothing by itself, so that each command pays for what it uses.
"""
