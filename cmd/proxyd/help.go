package main

// help is what --help prints; a test holds it against the options that parseOptions knows.
const help = `proxyd [OPTIONS...] HOST:PORT
proxyd [OPTIONS...] SOCKET

Forward the clients of listening sockets to one backend, in both directions.

  -h --help                 Show this help
     --version              Show package version
     --check                Check this command line and start nothing
     --listen=ADDRESS       Listen here, beside the sockets from systemd; may be
                            given more than once
  -c --connections-max=N    How many connections there may be (256)
     --connections-max-per-source=N
                            How many of them one client address, or one user of
                            a local socket, may have (0: all)
     --source-prefix-ipv6=LENGTH
                            How much of an IPv6 address that limit counts by, 1
                            to 128 bits (64)
     --exit-idle-time=SPAN  Exit after this long without connections (infinity)
     --proxy-protocol=off|v1|v2
                            Tell the backend the client's address in a PROXY
                            protocol header (off)
     --accept-proxy=SOURCE[,SOURCE...]
                            Require a PROXY protocol header from these clients,
                            which names the true ones: IP addresses, prefixes,
                            or unix; may be given more than once
     --accept-proxy-timeout=SPAN
                            Refuse such a client when the header takes longer
                            than this (10s)
     --connect-timeout=SPAN Give up an attempt to connect after this long (10s)
     --connect-retry=SPAN   Keep a client waiting this long for a backend that
                            does not listen yet (5s)
     --idle-timeout=SPAN    Close a connection after this long without a byte in
                            either direction (infinity)
     --half-close-timeout=SPAN
                            Close a connection after this long without a byte
                            once one side has sent all it will (1min)
     --abort-on-close=BOOL  Give up a client that finishes sending while it
                            waits for the backend (no)
     --tcp-user-timeout=SPAN
                            Give up a TCP peer that has acknowledged nothing
                            for this long (infinity: the kernel decides)
     --coalesce=BOOL        Move a steady one-way TCP stream every 4 ms (yes)
     --hand-over=BOOL       Keep connections over a restart of the unit (yes)
     --drain-timeout=SPAN   On SIGTERM, let connections finish this long (5s)
     --name=NAME            The name of this instance on the bus (its unit's)
     --bus=auto|system|session|none|ADDRESS
                            Where proxyctl finds it; auto is the user's bus in a
                            unit of a user, else the system bus, where there is
                            one (auto)
     --log-level=LEVEL      Log only what is at least this important: emerg,
                            alert, crit, err, warning, notice, info, debug, or
                            0 to 7 (info)

Time spans are those of systemd.time(7).
`
