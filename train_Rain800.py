"""Trains the teacher, SID, on the synthetic pairs of Rain800. Method: stages.py; numbers: config.py."""

from config import TEACHERS
from engine import train
from stages import SID

if __name__ == "__main__":
    train(SID, TEACHERS["Rain800"])
