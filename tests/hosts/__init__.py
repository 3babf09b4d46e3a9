"""Real hosts on one machine: containers with systemd, sshd and a Docker Engine of their own.

The demo, the Molecule scenarios and the benchmarks make their hosts here. ``docs/hosts.md`` says how they work.
"""
