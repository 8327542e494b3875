"""Run turns on other machines: places, and the protocol between a server and a worker."""
