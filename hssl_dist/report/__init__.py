"""HTML reports and the figures in them.

png(line_chart({"image": points}, y_label="loss"))    # a PNG for the tracker
inline_svg(line_chart(...), alt="...")                # the same chart for a page
quality_report(QualityData(header, records, ...))     # a page
"""

from hssl_dist.report.curves import line_chart
from hssl_dist.report.demo import Arm, DatasetRow, DemoData, Stage, demo_report
from hssl_dist.report.figures import inline_svg, png
from hssl_dist.report.montage import fullest_slice, montage
from hssl_dist.report.quality import QualityData, quality_report

__all__ = [
    "Arm",
    "DatasetRow",
    "DemoData",
    "QualityData",
    "Stage",
    "demo_report",
    "fullest_slice",
    "inline_svg",
    "line_chart",
    "montage",
    "png",
    "quality_report",
]
