"""Derains and scores the images of SPA with the student, SSID-KD, that was trained on Rain200L."""

from config import EVALUATIONS
from machinery.evaluation import evaluate

if __name__ == "__main__":
    evaluate(EVALUATIONS["SPA", "SSID-KD"])
