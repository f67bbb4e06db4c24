"""Distils the student, SSID-KD, from the teacher of Rain1400, on its pairs and unlabelled real rain."""

from config import STUDENTS
from engine import train
from stages import SSIDKD

if __name__ == "__main__":
    train(SSIDKD, STUDENTS["Rain1400"])
