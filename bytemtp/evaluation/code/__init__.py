"""Code problems: reading them, drawing samples, judging them in the sandbox, pass@k and its report.

Imports what evaluation imports.
"""
