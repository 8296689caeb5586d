"""Typing errors as people make them: slips of the finger in English, the wrong word of the same sound in Chinese."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from liuyi.data.desk.facility import Language

_NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip

# Characters that an input method offers for the same or nearly the same sound.
_SAME_SOUND = {
    "灯": "登等", "开": "凯揩", "关": "管观", "打": "大达", "厨": "除橱", "房": "放防", "客": "克课", "厅": "听停",
    "卧": "我握", "室": "是式", "餐": "参惨", "书": "舒输", "车": "撤彻", "库": "裤酷", "花": "华划", "园": "圆员",
    "阳": "洋杨", "台": "抬太", "阁": "格隔", "楼": "搂漏", "层": "曾蹭", "窗": "床闯", "帘": "连联", "锁": "所索",
    "门": "们闷", "亮": "凉量", "度": "渡肚", "温": "文稳", "调": "掉跳", "设": "社射", "置": "制至", "定": "订顶",
    "时": "石十", "器": "气汽", "计": "记际", "分": "份纷", "钟": "中终", "秒": "渺妙", "小": "晓笑", "取": "去曲",
    "消": "销效", "暂": "站赞", "停": "听挺", "恢": "灰会", "复": "付副", "继": "记既", "续": "旭需", "音": "因银",
    "量": "亮凉", "高": "搞告", "低": "底的", "静": "净竟", "首": "手受", "曲": "区取", "状": "装撞", "态": "太泰",
    "颜": "言严", "色": "涩设", "红": "洪宏", "蓝": "兰拦", "绿": "率律", "白": "百摆", "黄": "皇慌", "风": "封丰",
    "扇": "闪善", "空": "控孔", "热": "惹", "泵": "崩蹦", "地": "的弟", "暖": "软", "视": "是试", "电": "店点",
    "箱": "想相", "收": "手首", "机": "几级", "咖": "卡", "啡": "非飞", "印": "应引", "加": "家佳", "湿": "诗失",
    "购": "够狗", "物": "务误", "清": "轻青", "单": "丹但", "添": "天田", "删": "山扇", "除": "厨出", "完": "玩晚",
    "成": "城程", "扫": "嫂少", "洁": "结节", "启": "起企", "动": "懂洞", "执": "直值", "行": "形型",
    "场": "厂常", "景": "井警", "切": "且窃", "换": "唤还", "天": "添田", "怎": "咋", "样": "漾洋", "位": "为未",
    "办": "半伴", "公": "工功", "会": "回汇", "议": "易意", "走": "奏", "廊": "郎狼", "浴": "育玉", "卫": "为位",
    "生": "声升", "间": "简件", "健": "建见", "身": "深神", "储": "出除", "藏": "苍仓", "百": "白摆", "叶": "页也",
}  # fmt: skip


def mistype(text: str, language: Language, rng: random.Random) -> str | None:
    """The sentence with one typing error, two when it is long; None where there is nothing to mistype.

    Digits stay as they are: a wrong digit is another request, not a misspelt one.
    """
    errors = 2 if len(text) > {"en": 40, "zh": 16}[language] and rng.random() < 0.4 else 1
    spoilt: str | None = text
    for _ in range(errors):
        if spoilt is not None:
            spoilt = (_slip_en if language == "en" else _slip_zh)(spoilt, rng)
    return spoilt if spoilt != text else None


def _slip_en(text: str, rng: random.Random) -> str | None:
    words = list(re.finditer(r"[a-z]{3,}", text))
    if not words:
        return None
    word = rng.choice(words)
    # The first letter is seldom mistyped, and most errors are single letters left out, doubled, swapped or hit beside.
    place = rng.randrange(word.start() + 1, word.end())
    here = text[place]
    kind = rng.choices(("drop", "double", "swap", "beside"), (4, 2, 3, 3))[0]
    if kind == "swap" and place + 1 < word.end():
        return text[:place] + text[place + 1] + here + text[place + 2 :]
    if kind == "double":
        return text[:place] + here + text[place:]
    if kind == "beside":
        return text[:place] + rng.choice(_NEIGHBOURS[here]) + text[place + 1 :]
    return text[:place] + text[place + 1 :]


def _slip_zh(text: str, rng: random.Random) -> str | None:
    han = [place for place, char in enumerate(text) if "\u4e00" <= char <= "\u9fff"]
    if len(han) < 3:
        return None
    slips: list[Callable[[], str | None]] = [lambda: _wrong_sound(text, han, rng)] * 4
    slips += [lambda: _left_out(text, han, rng), lambda: _twice(text, han, rng), lambda: _swapped(text, han, rng)]
    return rng.choice(slips)()


def _wrong_sound(text: str, han: list[int], rng: random.Random) -> str | None:
    known = [place for place in han if text[place] in _SAME_SOUND]
    if not known:
        return None
    place = rng.choice(known)
    return text[:place] + rng.choice(_SAME_SOUND[text[place]]) + text[place + 1 :]


def _left_out(text: str, han: list[int], rng: random.Random) -> str:
    place = rng.choice(han)
    return text[:place] + text[place + 1 :]


def _twice(text: str, han: list[int], rng: random.Random) -> str:
    place = rng.choice(han)
    return text[:place] + text[place] + text[place:]


def _swapped(text: str, han: list[int], rng: random.Random) -> str | None:
    pairs = [place for place in han if place + 1 in han]
    if not pairs:
        return None
    place = rng.choice(pairs)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
