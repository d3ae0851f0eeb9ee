"""The one-command stack: PostgreSQL and Valkey out of wheels, and Turnmill's own processes.

Everything lives in one data folder, listens on loopback only, and dies with the process
that started it. Linux only: that last promise rests on `PR_SET_PDEATHSIG`.
"""
