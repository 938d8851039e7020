"""The worker: a pytest session that runs the tests its parent asks for, one at a time, and reports back.

Started as `python worker_main.py FD PYTEST_ARGS...`, FD being one end of a multiprocessing pipe. It sends
"ready" once collected, then answers each (node id, node id of a likely next or None) with a list of
serialised reports, or with a str saying why there are none. None, or a closed pipe, ends it.
"""

import os
import sys
from multiprocessing.connection import Connection

import pytest


class Serve:
    def __init__(self, connection):
        self.connection = connection
        self.reports = []
        self.collection_errors = []

    def pytest_collectreport(self, report):
        if report.failed:
            self.collection_errors.append(f"{report.nodeid}:\n{report.longreprtext}")

    def pytest_runtest_logreport(self, report):
        self.reports.append(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        items = {item.nodeid: item for item in session.items}
        self.connection.send("ready")
        try:
            while (request := self.connection.recv()) is not None:
                nodeid, following = request
                if nodeid in items:
                    # fixtures kept for a test that another worker took
                    session._setupstate.teardown_exact(items[nodeid])
                    self.connection.send(self.run(session.config, items[nodeid], items.get(following)))
                else:
                    self.connection.send("\n".join(["not collected in the worker", *self.collection_errors]))
        except EOFError:
            pass  # the parent is gone
        return True

    def run(self, config, item, following):
        self.reports = []
        config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return [
            config.hook.pytest_report_to_serializable(config=config, report=report) for report in self.reports
        ]


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m pytest` has it, instead of this file's folder
    pytest.main(sys.argv[2:], plugins=[Serve(Connection(int(sys.argv[1])))])
