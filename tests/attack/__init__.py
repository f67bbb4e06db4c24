"""Attacks: what must hold whatever comes in. A target a test, in one file a subject.

`make test` runs a few cases of each, the same every time; `make attack` goes on for ATTACK seconds a target,
and says how many cases that were. A target takes the fixture `budget` (conftest.py): `budget.draw` for
properties of drawn input, `budget.seeds` for whole runs, as series of kills.

Pictures, names, folder trees and options of any kind are in test_inputs; checkpoints changed in their bytes
and in what they hold in test_checkpoints; runs that are killed and gone on with, and disks that fill up, in
test_runs. What has one right answer is in a table: test_bad_inputs.
"""
