"""PIE-Bench (Ju et al., ICLR 2024, arXiv 2310.01506) with this pack: `python -m bench.pie FOLDER`;
docs/PIE_BENCH.md.

dataset   the benchmark's own folder            toyset    a small folder of that format, drawn
editing   every picture through a ComfyUI       store     what is finished, safe against being
killed metrics   the seven figures; structure.py       report    tables and report.json;
published.py
"""
