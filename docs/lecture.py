"""Runs lecture.ipynb and keeps its outputs in it: `make lecture`, after every change of the notebook."""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).with_suffix(".ipynb")


def execute(notebook, folder):
    """Runs all cells in a folder; of this machine it keeps nothing: no times, no versions, no numbers of executions."""
    client = NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # of the kernel, which warns that it talks to this process
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = None


def main():
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, folder)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
