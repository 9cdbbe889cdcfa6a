"""The methods as one axis: what importing them costs, what each declares, and what a new one takes."""
import subprocess
import sys

from clstudy.utils import paths


def test_importing_the_methods_costs_torch_and_no_library_of_models():
    heavy = "('open_clip', 'torchvision', 'peft', 'transformers', 'matplotlib')"
    program = f"import sys, clstudy.methods; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          cwd=paths.REPOSITORY)
    assert done.stdout.strip() == "[]"
