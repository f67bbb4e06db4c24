"""Derains and scores the test images of Rain200H with the student, SSID-KD."""

from config import EVALUATIONS
from machinery.evaluation import evaluate

if __name__ == "__main__":
    evaluate(EVALUATIONS["Rain200H", "SSID-KD"])
