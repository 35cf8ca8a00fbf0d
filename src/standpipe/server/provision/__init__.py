"""A deployment, from a short description to files in their places.

    description   what is asked for: read from TOML, checked, the rest filled in from the machine
    serverconf    the server's options, each valid for its version; `standpipe up` uses them too
    acl           the users' rules: the commands and keys that our code uses, and nothing else
    certificates  the authority, the server's and the clients' certificates
    kernel        the machine's settings, and whether large packets get through
    units         systemd units, log rotation, limits
    beside        HAProxy, Prometheus, Compose, Kubernetes
    bundle        all of it as files; pure
    applying      the bundle's folder, and the files put in place with what they replace kept

This package imports nothing by itself, so that each command pays for what it uses.
"""
