"""CoSpec as a model of lm-evaluation-harness: ``python -m cospec.lm_eval --model cospec ...``.

`settings` reads what the harness passes, `model` is the model, ``__main__`` the harness's own
command line with that model registered. How to use it: ``docs/lm_eval.md``.
"""
