"""HMAT against its flat twin at equal FLOPs, three decades of them, on users of the embedded shop without end.

Hardware: 2 CPU cores, one cell on each. Wall time: its 48 cells took some three hours of a core, starting and compiling
included, beside other work and with pauses.
Command: python -m benchmarks.scaling, or hisam scale configs/scaling/shop.py --out runs/scale-shop --jobs 2
A fourth decade: `"ahead": {"models": both, "sizes": ("w192",), "budgets": (1e14,), ...}`, half an hour a cell.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The fields are those of `hisam_jax.scaling.sweep.Sweep`."""
    both = {"models": ("hmat", "flat"), "histories": (64,)}
    by_budget = {
        1e10: ("w8", "w12", "w16", "w24", "w32"),
        1e11: ("w12", "w16", "w24", "w32", "w64"),
        1e12: ("w24", "w32", "w64", "w96", "w128"),
        1e13: ("w32", "w48", "w64", "w96"),
    }  # fmt: skip
    isoflop = {f"c{flops:.0e}".replace("+", ""): {**both, "sizes": sizes, "budgets": (flops,)}
               for flops, sizes in by_budget.items()}  # fmt: skip
    return ml_collections.ConfigDict(
        {
            "title": "Scaling laws on the embedded shop",
            "data": {
                "prepare": {
                    "source": "shop", "shop_users": 1000, "shop_items": 1000, "shop_cold_items": 0,
                    "shop_events_per_user": 48, "text_encoder": "word_vectors",
                }
            },
            "tokenizer": {"config": "configs/tokenizer/dst.py", "overrides": {"dst": {"shared": (64, 64)}}},
            "config": "configs/scaling/base.py",
            "models": {"hmat": {}, "flat": {"model": {"anchors": False}}},
            "sizes": {
                "w8": {"width": 8, "layers": 1, "heads": 1},
                "w12": {"width": 12, "layers": 1, "heads": 1},
                "w16": {"width": 16, "layers": 1, "heads": 2},
                "w24": {"width": 24, "layers": 1, "heads": 2},
                "w32": {"width": 32, "layers": 1, "heads": 2},
                "w48": {"width": 48, "layers": 2, "heads": 3},
                "w64": {"width": 64, "layers": 2, "heads": 4},
                "w64_l1": {"width": 64, "layers": 1, "heads": 4},
                "w64_l4": {"width": 64, "layers": 4, "heads": 4},
                "w96": {"width": 96, "layers": 2, "heads": 4},
                "w128": {"width": 128, "layers": 3, "heads": 4},
                "w192": {"width": 192, "layers": 3, "heads": 6},
            },
            "parts": {
                **isoflop,
                "depth": {**both, "sizes": ("w64_l1", "w64_l4"), "budgets": (1e12,)},
                "history": {**both, "sizes": ("w64",), "budgets": (1e12,), "histories": (4, 16, 128)},
            },
            "learning_rate": {"base": 4e-3, "base_width": 64, "power": 0.5},
            "batch_items": 256,
        }
    )  # fmt: skip
