"""The known solutions of a problem file with every body replaced by `return None`, as samples that must all fail.

python experiments/hollow.py mbpp.jsonl >hollow.jsonl
python -m bytemtp.evaluate execute --problems mbpp.jsonl --samples hollow.jsonl --out hollow
"""

import ast
import json
import sys
from pathlib import Path

from bytemtp.evaluation.code.problems import read_problems


class Hollow(ast.NodeTransformer):
    """Empties functions; classes keep their methods."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = ast.parse("return None").body
        return node


for problem in read_problems(Path(sys.argv[1])):
    if problem.canonical is None:
        continue
    source = ast.unparse(Hollow().visit(ast.parse(problem.source(problem.canonical))))
    print(json.dumps({"task_id": problem.task_id, "solution": source}))
