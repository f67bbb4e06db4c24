"""Trains a teacher, SID, for photographs: on Rain800, Rain200H, Rain200L and streak layers together."""

from config import PHOTOGRAPHS
from engine import train
from stages import SID

if __name__ == "__main__":
    train(SID, PHOTOGRAPHS["SID"])
