"""What it costs to start: the library and the command line."""

import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("words", [["-c", "import hetmem"], ["-m", "hetmem.cli", "--help"]], ids=["import", "help"])
def test_start_takes_less_than_half_a_cpu_second(words: list[str]) -> None:
    best = 9.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"{' '.join(words)}: {best:.2f} CPU-seconds")
    assert best < 0.5
