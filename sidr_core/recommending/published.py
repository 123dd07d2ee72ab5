"""Figures that others published on the test rows of MiniOneRec's published splits, and of Video Games 2018.

They stand beside what is measured here, marked, and are never ranked with it: most models have other sizes, no source
gives seeds or intervals, and those of the splits were trained on five times the train rows that are available of
Office and count a hit of the SID (docs/method.md, "Decoding and evaluation"). Figures are as their sources give them,
to four decimals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

_SIDREASONER = "arXiv 2603.23183, table 2"
_MINIONEREC = "arXiv 2510.24431, main table"
_REPRODUCED = "YuFan-Microsoft/RecSysSummer, authors' checkpoint, beam 10"
_UVA = "erinelgz/SIDReasoner-UvA"
_LC_REC = "arXiv 2311.09049, table III"
#: Most that rounding to four places moves a difference of two figures, and a bit for binary fractions.
_ROUNDING = 1.001e-4


@dataclass(frozen=True)
class Published:
    """One published line; HR@k is called Recall@k in some of the sources."""

    model: str
    hr_5: float
    ndcg_5: float
    hr_10: float
    ndcg_10: float
    reference: str

    @property
    def figures(self) -> tuple[tuple[str, int, float], ...]:
        """(metric, k, value)."""
        return ("hr", 5, self.hr_5), ("ndcg", 5, self.ndcg_5), ("hr", 10, self.hr_10), ("ndcg", 10, self.ndcg_10)

    @property
    def consistent(self) -> bool:
        """Whether a ranking can have these figures: a hit at places 6 to 10 adds 1 / log2 11 to 1 / log2 7 of NDCG."""
        hits, gain = self.hr_10 - self.hr_5, self.ndcg_10 - self.ndcg_5
        least, most = (hits - _ROUNDING) / log2(11), (hits + _ROUNDING) / log2(7)
        return least - _ROUNDING <= gain <= most + _ROUNDING


_OFFICE = (
    Published("Caser", 0.0880, 0.0663, 0.1114, 0.0738, _SIDREASONER),
    Published("GRU4Rec", 0.0682, 0.0480, 0.0974, 0.0574, _SIDREASONER),
    Published("SASRec", 0.1019, 0.0824, 0.1167, 0.0871, _SIDREASONER),
    Published("TIGER", 0.1270, 0.1037, 0.1429, 0.1121, _SIDREASONER),
    Published("HSTU", 0.1204, 0.1069, 0.1323, 0.1107, _SIDREASONER),
    Published("LETTER", 0.1315, 0.1074, 0.1520, 0.1139, _SIDREASONER),
    Published("LC-Rec", 0.0964, 0.0699, 0.1487, 0.0867, _SIDREASONER),
    Published("ReaRec", 0.1173, 0.0988, 0.1385, 0.1057, _SIDREASONER),
    Published("R²ec", 0.1147, 0.0894, 0.1486, 0.1004, _SIDREASONER),
    Published("SIDReasoner", 0.1373, 0.1119, 0.1648, 0.1208, _SIDREASONER),
    Published("GRU4Rec", 0.0789, 0.0595, 0.1019, 0.0669, _MINIONEREC),
    Published("Caser", 0.0865, 0.0664, 0.1093, 0.0737, _MINIONEREC),
    Published("SASRec", 0.0949, 0.0805, 0.1120, 0.0858, _MINIONEREC),
    Published("HSTU", 0.1252, 0.1079, 0.1400, 0.1126, _MINIONEREC),
    Published("TIGER", 0.1163, 0.0960, 0.1408, 0.1002, _MINIONEREC),
    Published("LCRec", 0.1048, 0.0859, 0.1237, 0.0920, _MINIONEREC),
    Published("BIGRec", 0.1204, 0.1017, 0.1434, 0.1091, _MINIONEREC),
    Published("D3", 0.1406, 0.1139, 0.1634, 0.1213, _MINIONEREC),
    Published("S-DPO", 0.1356, 0.1110, 0.1587, 0.1255, _MINIONEREC),
    Published("MiniOneRec", 0.1420, 0.1172, 0.1634, 0.1242, _MINIONEREC),
    Published("SIDReasoner, reproduced", 0.1377, 0.1110, 0.1636, 0.1193, _REPRODUCED),
    Published("SIDReasoner S3, direct", 0.1289, 0.1107, 0.1441, 0.1156, _UVA),
    Published("SIDReasoner S3, with reasoning", 0.1245, 0.1067, 0.1342, 0.1099, _UVA),
)
_INDUSTRIAL = (
    Published("Caser", 0.0664, 0.0528, 0.0852, 0.0588, _SIDREASONER),
    Published("GRU4Rec", 0.0788, 0.0578, 0.1030, 0.0649, _SIDREASONER),
    Published("SASRec", 0.0807, 0.0647, 0.0964, 0.0697, _SIDREASONER),
    Published("TIGER", 0.1003, 0.0823, 0.1325, 0.0924, _SIDREASONER),
    Published("HSTU", 0.1008, 0.0898, 0.1138, 0.0940, _SIDREASONER),
    Published("LETTER", 0.1080, 0.0850, 0.1389, 0.0950, _SIDREASONER),
    Published("LC-Rec", 0.0805, 0.0520, 0.1330, 0.0687, _SIDREASONER),
    Published("ReaRec", 0.0973, 0.0796, 0.1205, 0.0870, _SIDREASONER),
    Published("R²ec", 0.0880, 0.0774, 0.1253, 0.0774, _SIDREASONER),
    Published("SIDReasoner", 0.1109, 0.0905, 0.1438, 0.1010, _SIDREASONER),
    Published("GRU4Rec", 0.0774, 0.0598, 0.0999, 0.0669, _MINIONEREC),
    Published("Caser", 0.0717, 0.0555, 0.0942, 0.0628, _MINIONEREC),
    Published("SASRec", 0.0909, 0.0748, 0.1088, 0.0806, _MINIONEREC),
    Published("HSTU", 0.1037, 0.0918, 0.1163, 0.0958, _MINIONEREC),
    Published("TIGER", 0.1010, 0.0807, 0.1321, 0.0908, _MINIONEREC),
    Published("LCRec", 0.1057, 0.0862, 0.1332, 0.0952, _MINIONEREC),
    Published("BIGRec", 0.1092, 0.0907, 0.1370, 0.0997, _MINIONEREC),
    Published("D3", 0.1213, 0.0989, 0.1500, 0.1082, _MINIONEREC),
    Published("S-DPO", 0.1238, 0.0991, 0.1524, 0.1082, _MINIONEREC),
    Published("MiniOneRec", 0.1321, 0.1084, 0.1586, 0.1167, _MINIONEREC),
    Published("SIDReasoner, reproduced", 0.1101, 0.0905, 0.1427, 0.1010, _REPRODUCED),
)

_GAMES = (
    Published("GRU4Rec", 0.0586, 0.0381, 0.0964, 0.0502, _LC_REC),
    Published("SASRec", 0.0581, 0.0365, 0.0940, 0.0481, _LC_REC),
    Published("FDSA", 0.0644, 0.0404, 0.1041, 0.0531, _LC_REC),
    Published("S3-Rec", 0.0606, 0.0364, 0.1002, 0.0491, _LC_REC),
    Published("P5-CID", 0.0506, 0.0342, 0.0803, 0.0437, _LC_REC),
    Published("TIGER", 0.0599, 0.0392, 0.0939, 0.0501, _LC_REC),
    Published("LC-Rec", 0.0800, 0.0560, 0.1174, 0.0681, _LC_REC),
)

#: (kind of source, test rows, their users) -> what was published on them: Office_Products, Industrial_and_Scientific;
#: the last item of every user of Video Games 2018.
_BY_SIZE: Mapping[tuple[str, int, int], tuple[Published, ...]] = {
    ("minionerec", 4866, 2024): _OFFICE,
    ("minionerec", 4533, 1987): _INDUSTRIAL,
    ("sequences", 50546, 50546): _GAMES,
}


def of_split(source: str, rows: int, users: int) -> tuple[Published, ...]:
    """What was published on the same test rows; nothing unless all rows of a published split were evaluated.

    Args:
        source: kind of the dataset's source.
        rows: test rows that were evaluated.
        users: users of these rows.
    """
    return _BY_SIZE.get((source, rows, users), ())
