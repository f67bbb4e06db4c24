"""Derains and scores the images of Real275 with the student, SSID-KD, that was trained on Rain200L."""

from config import EVALUATIONS
from machinery.evaluation import evaluate

if __name__ == "__main__":
    evaluate(EVALUATIONS["Real275", "SSID-KD"])
