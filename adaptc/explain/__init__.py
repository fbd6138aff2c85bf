"""What the compiler makes of an adapter: formula, parameters, FLOPs, what is kept and why, the plan and its rivals."""

from adaptc.explain.compare import compare as compare
from adaptc.explain.report import Report as Report
from adaptc.explain.report import explain as explain
from adaptc.explain.report import kept as kept
