"""Trains the teacher, SID, on the synthetic pairs of Rain800. The recipe: config.py; the loop: engine.py."""

from config import TEACHERS
from engine import train

if __name__ == "__main__":
    train(TEACHERS["Rain800"])
