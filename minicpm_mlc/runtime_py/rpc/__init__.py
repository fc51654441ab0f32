"""A bundle on another machine: TVM's RPC carries one message per call of the library, so a decode
step is one round trip.
"""
