"""Distils the student, SSID-KD, from the teacher of Rain200L, on its pairs and unlabelled real rain."""

from config import STUDENTS
from engine import train

if __name__ == "__main__":
    train(STUDENTS["Rain200L"])
