"""The conformance tests of jupyter_kernel_test, on the installed kernel."""

from __future__ import annotations

import time
import unittest

from jupyter_client.manager import start_new_kernel
from jupyter_kernel_test import IopubWelcomeTests, KernelTests


class SnakepitKernelTests(KernelTests):
    kernel_name = "snakepit"
    language_name = "python"
    file_extension = ".py"

    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import itertools; itertools.accu", "matches": {"accumulate"}},
    ]
    complete_code_samples = ["1", "print('hello')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2", "with open('f') as f:"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('on purpose')"
    code_execute_result = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n * n for n in range(1, 4)]", "result": "[1, 4, 9]"},
        {"code": "'a' 'b'", "result": "'ab'"},
    ]
    code_display_data = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))",
         "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('1/2'))",
         "mime": "text/latex"},
    ]  # fmt: skip
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")  # IPython calls the running session 0
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        cls.km, cls.kc = start_new_kernel(kernel_name=cls.kernel_name)
        while not cls.kc.hb_channel.is_beating():  # its descriptors are none of a test's
            time.sleep(0.01)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.kc.stop_channels()
        cls.km.shutdown_kernel()
        cls.km.context.destroy(linger=0)


class SnakepitIopubWelcomeTests(IopubWelcomeTests):
    kernel_name = "snakepit"
    support_iopub_welcome = True

    @classmethod
    def setUpClass(cls) -> None:
        cls.km, first = start_new_kernel(kernel_name=cls.kernel_name)
        first.stop_channels()
        cls.kc = cls.km.client()

    def test_recv_iopub_welcome_msg(self) -> None:
        try:
            super().test_recv_iopub_welcome_msg()
        finally:
            self.kc.stop_channels()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.km.shutdown_kernel()
        cls.km.context.destroy(linger=0)


# The classes that were imported are not to be run by themselves.
del KernelTests, IopubWelcomeTests

assert issubclass(SnakepitKernelTests, unittest.TestCase)
