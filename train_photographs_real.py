"""Distils the student, SSID-KD, from the teacher for photographs, on its pairs and unlabelled real rain."""

from config import PHOTOGRAPHS
from engine import train
from stages import SSIDKD

if __name__ == "__main__":
    train(SSIDKD, PHOTOGRAPHS["SSID-KD"])
