"""The proof for a card, as far as a CPU can give it: all that is predicted holds."""

import json

from benchmarks import prove_cuda

KINDS = {"SID,": 4, "SSID-KD,": 4, "SSIM": 2, "dark channel": 2, "two processes": 4, "recorded": 4}


def test_on_a_cpu_everything_predicted_holds(monkeypatch, tmp_path):
    out = tmp_path / "proof.json"
    words = ["prove_cuda.py", "--device", "cpu", "--small", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    prove_cuda.main()
    rows = json.loads(out.read_text())["rows"]
    assert not [row for row in rows if row["holds"] is False]
    for kind, count in KINDS.items():
        assert sum(f" {kind}" in f" {row['what']}" for row in rows) == count, kind
