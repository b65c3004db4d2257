"""The tests, a package so that a fake can be started as a program: `python -m tests.fake_guest`."""
