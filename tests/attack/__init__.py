"""Attacks: what must hold whatever comes in. A target a test, in one file a subject.

`make test` runs a few cases of each, the same every time; `make attack` goes on for ATTACK seconds a target,
and says how many cases that were. A target takes the fixture `budget` (conftest.py): `budget.draw` for
properties of drawn input, `budget.seeds` for whole runs, as series of kills.

Images, names, folder trees and options of any kind are in test_inputs; runs that are killed and resumed, and
disks that fill up, in test_runs. Inputs with one right answer are in a table: test_bad_inputs.
"""
