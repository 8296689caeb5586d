"""Rules that only make sense for Chinese: punctuation, function characters, advertisement and navigation phrases."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from liuyi.data.clean.batch import Batch, Class, Floats, Ints, ratio

ATTRIBUTES = ("zh_punctuation", "zh_function_chars", "zh_boilerplate")

_FUNCTION = "的了是在和有不这那就也都而及与着或一个我你他她它们上下中为以于之其所从到对被把将能会可要没很但因如果当"
_SENTENCE = "，。！？；：、…,.!?;:"
_BOILERPLATE = (
    "点击(?:这里|此处|查看|下载|进入|阅读|链接|领取|关注)|上一[篇页章]|下一[篇页章]|返回(?:顶部|首页|目录|列表)|版权所有|"
    "转载请(?:注明|联系)|ICP备|公网安备|加(?:微信|QQ)[群号]?|加我(?:微信|QQ)|扫[码描](?:关注|二维码|添加|加|领取)|微信(?:号|公众号|群)|"
    "关注我们|立即(?:购买|注册|下载|咨询|抢购|领取|申请|预约|拨打)|在线(?:咨询|客服|留言)|联系(?:电话|客服)|客服(?:电话|热线|QQ)|"
    "全国(?:统一)?热线|免费(?:领取|试用|注册|咨询|下载|送货)|限时(?:优惠|抢购|特价|秒杀)|全场包邮|包邮|原价|现价|秒到账|无抵押|"
    "网站(?:地图|首页|导航)|友情链接|责任编辑|相关(?:文章|推荐|阅读)|热门(?:推荐|文章|搜索|标签)|最新(?:文章|资讯|评论)|"
    "更多(?:精彩|内容|>>|»)|登录[ |/]*注册|收藏本[站页]|设为首页|分享到|我要评论|发表评论|评论\\(|阅读\\(|浏览[：:]|"
    "日赚|兼职赚|代开发票|办证刻章|棋牌|博彩|娱乐城|开户送|私服|代理招商|招商加盟|祖传秘方|包治|当天见效|无效退款"
)


def chinese(batch: Batch) -> dict[str, Floats]:
    """Ratios to the number of Han characters, 0 where there is none:

    - zh_punctuation: marks that divide sentences, full-width or not; running text has about 0.1, keywords have none.
    - zh_function_chars: the characters that grammar needs (的了是在…); running text has about 0.15.
    - zh_boilerplate: characters in phrases of advertisement and navigation.
    """
    han = batch.counts[:, Class.HAN]
    if not han.any():
        return {name: np.zeros(batch.size, np.float32) for name in ATTRIBUTES}
    marks = _count(batch, _SENTENCE)
    phrases = pc.count_substring_regex(batch.texts, _BOILERPLATE).to_numpy(zero_copy_only=False)
    return {
        "zh_punctuation": ratio(marks * (han > 0), han),
        "zh_function_chars": ratio(_count(batch, _FUNCTION), han),
        "zh_boilerplate": ratio(4 * np.asarray(phrases, np.int64), han),
    }


def _count(batch: Batch, letters: str) -> Ints:
    wanted = np.zeros(0x10000, bool)
    wanted[list(map(ord, letters))] = True
    return np.bincount(batch.owner[wanted[np.minimum(batch.points, 0xFFFF)]], minlength=batch.size)
