# ruff: noqa: E501
"""Chinese under the default rules: good paragraphs stay, rubbish goes."""

from __future__ import annotations

import random
from importlib.resources import files
from itertools import accumulate, pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liuyi.data.clean.batch import Batch
from liuyi.data.clean.chinese import chinese
from liuyi.data.clean.filters import measure
from liuyi.data.clean.matching import Words
from liuyi.data.select.rules import Attributes, reasons
from liuyi.data.select.thresholds import Thresholds

GOOD = (
    "安装完成后，打开终端并输入下面的命令，就可以看到当前的版本号。如果系统提示找不到命令，请检查环境变量里有没有安装目录，修改之后要重新打开终端才会生效。",
    "春天来得很早，河边的柳树已经冒出了嫩芽。老人们搬着小凳子坐在桥头晒太阳，孩子们在空地上放风筝，笑声一阵一阵地传过来，整个村子好像都醒了。",
    "本函数返回一个新的列表，其中的元素按照从小到大的顺序排列。参数 key 用来指定比较的依据，参数 reverse 为真时顺序相反。原来的列表不会被修改。",
    "法院认为，双方签订的合同是真实意思的表示，内容不违反法律的规定，应当认定为有效。被告没有按照约定的时间交付货物，已经构成违约，应当承担相应的责任。",
    "水在标准大气压下加热到一百摄氏度时会沸腾，变成水蒸气。海拔越高，气压越低，沸点也就越低，所以在高原上煮饭往往不容易熟，需要用高压锅。",
    "她小时候最喜欢的事情，是跟着外婆去菜市场。外婆总能从一堆看起来差不多的青菜里挑出最新鲜的几棵，一边挑一边跟卖菜的人聊天，问他们家里的收成怎么样。",
    "“你到底去不去？”他又问了一遍。“不去。”她头也不抬地说，“外面雨下得这么大，去了也看不到什么。”他叹了口气，把伞放回门边，坐下来继续看那本没看完的书。",
    "為了讓系統能夠正常運作，管理員必須先建立一個使用者帳號，並且設定適當的權限。完成之後，請重新啟動服務，然後檢查記錄檔中是否出現任何錯誤訊息。",
    "唐代的长安是当时世界上最大的城市之一，城里有东西两个市场，来自各国的商人在这里买卖丝绸、香料和马匹。城市的街道像棋盘一样整齐，坊与坊之间有墙隔开。",
    "研究结果表明，每天散步半个小时的人，睡眠质量明显好于不运动的人。不过这项研究只观察了二百名志愿者，而且时间只有三个月，所以结论还需要更多的证据来支持。",
    "做这道菜并不难：先把豆腐切成小块，用盐水泡十分钟；锅里放油，加入肉末炒到变色，再放豆瓣酱和蒜末；最后倒入豆腐和少量的水，用小火煮五分钟就可以了。",
    "机器学习的目标是让程序从数据中学到规律，而不是由人把规则一条一条写出来。训练的时候，模型会不断调整参数，使预测和真实结果之间的差距越来越小。",
    "1. 先关闭电源，等待设备完全冷却。\n2. 用干净的软布擦去表面的灰尘，不要使用酒精。\n3. 检查接口处有没有松动，如果有，请轻轻地按紧。\n4. 重新接通电源，观察指示灯是否正常。",
    "各位同事：下周一上午九点在三楼会议室开会，讨论明年的工作计划。请各部门提前准备好材料，并在周五下班之前发给办公室。不能参加的同事请提前请假。",
    "这个城市的地铁在早上六点开始运行，晚上十一点半结束。高峰的时候每两分钟就有一班车，平时大约五分钟一班。换乘的时候请注意看指示牌，不要走错了方向。",
    "数据库在写入之前会先把修改记录到日志里，这样即使突然断电，重新启动之后也可以根据日志恢复到正确的状态。这种方法叫作预写日志，很多系统都在用。",
    "在 Python 里，字典（dict）是用哈希表实现的，所以查找一个键平均只需要常数时间。从 3.7 版开始，字典会保持插入的顺序，遍历的时候先放进去的先出来。",
    "清晨的雾还没有散，山脚下的小路湿漉漉的。背着竹篓的采茶人一个接一个往山上走，谁也不说话，只听得见脚步声和远处的鸟叫。太阳出来以后，茶园就热闹了。",
    "问：这种药可以和牛奶一起吃吗？答：最好不要。牛奶里的钙会影响药物的吸收，使药效降低。一般建议用温开水送服，并且在吃药前后的一个小时之内不要喝牛奶。",
    "第三章讨论的是如何估计误差。作者首先回顾了已有的几种方法，指出它们都假定样本之间相互独立，而这个假定在实际应用中常常不成立，然后提出了新的做法。",
)

RUBBISH = (
    "首页 新闻 体育 财经 娱乐 科技 汽车 房产 教育 健康 旅游 游戏 军事 历史 文化 星座 美食 时尚 女性 亲子 彩票 直播 视频 论坛 博客 微博 登录 注册",
    "点击这里免费领取优惠券，限时抢购全场包邮，立即购买！加微信领取红包，扫码关注公众号，客服热线在线咨询，限时特价，立即抢购，免费注册，全国统一热线等你来。",
    "版权所有 转载请注明 京ICP备12345678号 京公网安备 联系我们 网站地图 友情链接 免责声明 关于我们 广告服务 返回顶部 返回首页 在线客服 客服电话",
    "哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈，笑死我了哈哈哈哈哈哈哈哈哈哈哈哈哈哈！！！！！！！！！！",
    "锟斤拷锟斤拷锟斤拷烫烫烫烫屯屯屯锟斤拷锟斤拷烫烫烫锟斤拷锟斤拷锟斤拷屯屯屯烫烫烫锟斤拷锟斤拷锟斤拷锟斤拷烫烫烫锟斤拷锟斤拷",
    "\n".join(
        f"{year} {month:02d} 3{month}.5 1{month}.2 998 {year * 3}" for year in (2019, 2020) for month in range(1, 13)
    ),
    "手机壳 苹果手机壳 华为手机壳 小米手机壳 硅胶手机壳 透明手机壳 防摔手机壳 情侣手机壳 卡通手机壳 创意手机壳 个性手机壳 新款手机壳 潮牌手机壳 定制手机壳",
    "上一篇：暂无 下一篇：暂无 相关文章 热门推荐 最新文章 更多精彩 责任编辑 分享到 发表评论 我要评论 收藏本站 设为首页 返回列表 返回顶部 相关阅读 热门标签",
    "北京上海广州深圳天津重庆成都武汉杭州南京西安长沙沈阳青岛郑州大连宁波厦门济南哈尔滨福州长春石家庄合肥南昌昆明贵阳南宁太原兰州海口银川西宁呼和浩特乌鲁木齐拉萨",
    "买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一买一送一，就在今天，快来！",
    "祖传秘方包治百病，无效退款，当天见效！加微信咨询，免费试用，全国包邮，立即拨打客服热线，在线客服等您，限时优惠，原价九百现价九十九，立即购买送好礼，加QQ群领红包。",
    "★★★★★ 代开发票 ★★★★★ 办证刻章 ★★★★★ 小额贷款 ★★★★★ 无抵押秒到账 ★★★★★ 加微信 ★★★★★ 开户送彩金 ★★★★★ 棋牌娱乐城 ★★★★★ 日赚千元",
    "http://a.example/1\nhttp://a.example/2\nhttp://a.example/3\nhttp://a.example/4 下载\nhttp://a.example/5\nhttp://a.example/6 中文版\n"
    * 4,
    "1\n2\n3\n中\n文\n字\n一\n二\n三\n四\n五\n上\n下\n左\n右\n前\n后\n东\n西\n南\n北\n天\n地\n人\n日\n月\n星\n风\n雨\n雷\n电\n山\n水\n火\n木\n金\n土\n大\n小\n多\n少",
    "我爱你我爱你我爱你我爱你我爱你。我爱你我爱你我爱你我爱你我爱你。我爱你我爱你我爱你我爱你我爱你。我爱你我爱你我爱你我爱你我爱你。我爱你我爱你我爱你我爱你。",
    "|编号|名称|价格|\n|---|---|---|\n" + "\n".join(f"|{n}|商品{n}|{n * 3}|" for n in range(30)),
    "……\n".join(["最新电视剧在线观看", "免费小说下载阅读全文", "高清电影全集迅雷下载", "明星八卦新闻头条"] * 4) + "……",
    "ä¸­å›½äººæ°'å…±å'Œå›½ï¼Œä½ å¥½ä¸–ç•Œã€‚â€œè¿™æ˜¯ä¸€ä¸ªâ€\x9dæµ‹è¯•ã€‚ï¿½ï¿½ï¿½ Ã¦Â¸Â¬Ã¨Â©Â¦ Ã¤Â¸Â­Ã¦Â–Â‡ " * 3,
    "关键词：人工智能 大数据 云计算 区块链 物联网 元宇宙 数字化 转型 赋能 抓手 闭环 生态 矩阵 赛道 颗粒度 方法论 组合拳 引爆点 护城河 底层逻辑 顶层设计",
    "招商加盟 代理招商 全国招商加盟热线 免费咨询 加盟费用 加盟条件 加盟流程 加盟优势 加盟支持 加盟店 加盟商 连锁加盟 奶茶加盟 火锅加盟 快餐加盟 小吃加盟",
)

ON_RISKY_TOPICS = (
    "国家对彩票实行专营，发行费用和公益金的比例由财政部门规定。有研究认为，彩票的购买者以低收入人群为主，因此它在某种意义上是一种隐性的税收，这也是一些学者主张限制其规模的原因。",
    "这款药的临床试验一共纳入了三百名患者，随机分成两组。治疗组的疗程为十二周，常见的副作用是头痛和恶心，程度较轻，停药之后可以自行消失，没有出现严重的不良反应。",
    "去年以来，这座城市的房价已经连续下跌了八个月。一些购房者选择提前还清贷款，银行因此收紧了按揭的审批。分析师认为，短期之内成交量很难恢复到两年前的水平。",
    "电商平台在促销的时候常常先提高价格再打折，看起来优惠很大，其实并没有便宜多少。监管部门要求商家标明过去三十天里的最低价，让消费者可以自己判断是不是划算。",
    "他毕业以后先在一家培训机构教英语，工资不高，但是时间很自由。两年之后他辞了职，和朋友一起开了家书店，生意时好时坏，好在房租便宜，勉强能够维持下去。",
    "如果忘记了密码，可以在登录页面点击“找回密码”，系统会向注册时填写的邮箱发送一封邮件。打开邮件里的链接，就能重新设置密码；链接的有效时间是一个小时。",
    "减肥的原理并不复杂：消耗的热量要大于摄入的热量。只靠节食往往会反弹，因为身体会降低基础代谢。比较稳妥的办法是适当控制饮食，同时每周做三到五次中等强度的运动。",
    "这部电影的导演是第一次拍长片，主演大多是没有经验的村民。影片的节奏很慢，对白也很少，但是镜头里的山和雾有一种说不出来的力量，看完以后很久都忘不了。",
)


def judged(texts: tuple[str, ...], thresholds: Thresholds | None = None) -> list[str]:
    """The reason to drop each text, empty where it is kept."""
    table = measure(pa.array(texts))
    table = table.append_column("duplicate_kind", pa.array([""] * len(texts)))
    table = table.append_column("duplicate_similarity", pa.array([1.0] * len(texts), pa.float32()))
    licences = pa.chunked_array([["MIT"] * len(texts)])
    return reasons(Attributes(table, licences), thresholds or Thresholds()).tolist()


def test_good_paragraphs_stay() -> None:
    lost = {text: reason for text, reason in zip(GOOD, judged(GOOD), strict=True) if reason}
    assert len(lost) <= 0.05 * len(GOOD), lost


def test_articles_about_what_is_advertised_stay() -> None:
    lost = {text: reason for text, reason in zip(ON_RISKY_TOPICS, judged(ON_RISKY_TOPICS), strict=True) if reason}
    assert not lost


def test_garbled_paragraphs_go() -> None:
    rng = random.Random(5)
    for text in GOOD:
        shuffled = "".join(rng.sample(text, len(text)))
        wrong = text.encode("utf-8").decode("gb18030", "replace")
        other = text.encode("gb18030").decode("latin-1")
        assert all(judged((shuffled, wrong, other))), text


@pytest.mark.parametrize("text", GOOD)
def test_words_tell_text_from_shuffled_characters(text: str) -> None:
    shuffled = ["".join(random.Random(seed).sample(text, len(text))) for seed in range(20)]
    written, *garbled = chinese(Batch(pa.array([text, *shuffled])))["zh_word_pairs"]
    assert sorted(garbled)[17] < Thresholds().min_zh_word_pairs < written


def test_word_pairs_by_plain_counting() -> None:
    lines = files("liuyi.data.clean").joinpath("chinese_pairs.txt").read_text(encoding="utf-8").splitlines()
    pairs = {line[0] + second for line in lines if not line.startswith("#") for second in line[1:]}
    assert {"我们", "電腦", "电脑", "因为"} <= pairs
    for text in (*GOOD, *RUBBISH[:3]):
        near = [first + second for first, second in pairwise(text) if is_han(first) and is_han(second)]
        expected = sum(pair in pairs for pair in near) / len(near)
        assert chinese(Batch(pa.array([text])))["zh_word_pairs"][0] == pytest.approx(expected, abs=1e-6)


def is_han(letter: str) -> bool:
    return "\u3400" <= letter <= "\u9fff"


def test_phrases_cover_a_share_of_the_text() -> None:
    measured = chinese(Batch(pa.array(["优惠优惠好的", "首页，天地", "好的天地", "plain English 优惠"])))
    assert measured["zh_advertising"].tolist() == pytest.approx([4 / 6, 0, 0, 2 / 14])
    assert measured["zh_boilerplate"].tolist() == pytest.approx([0, 2 / 5, 0, 0])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(st.sampled_from("ab中文"), max_size=12), min_size=1, max_size=4),
    st.sets(st.text(st.sampled_from("ab中文"), min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_words_are_found_where_they_stand(texts: list[str], words: set[str]) -> None:
    named, batch = sorted(words), Batch(pa.array(texts))
    found = Words(named, overlapping=True).find(batch)
    begins = [0, *accumulate(map(len, texts))]
    expected = {
        (row, word, begins[row] + start)
        for row, text in enumerate(texts)
        for word in named
        for start in range(len(text))
        if text.startswith(word, start)
    }
    assert {
        (int(row), named[word], int(start))
        for row, word, start in zip(found.owner, found.word, found.start, strict=True)
    } == expected
    longest = Words(named).find(batch)
    assert longest.chars.sum() <= sum(map(len, texts))


def test_rubbish_goes() -> None:
    kept = [text for text, reason in zip(RUBBISH, judged(RUBBISH), strict=True) if not reason]
    assert len(kept) <= 0.1 * len(RUBBISH), kept


def test_several_rules_are_at_work() -> None:
    assert len(set(judged(RUBBISH))) >= 6


@pytest.mark.parametrize("text", GOOD)
def test_good_paragraphs_are_chinese(text: str) -> None:
    table = measure(pa.array([text]))
    assert table["lang"].to_pylist() == ["zh"]
    assert table["han_ratio"][0].as_py() > 0.7
    assert 0.05 < table["zh_punctuation"][0].as_py() < 0.25


def test_japanese_is_not_chinese() -> None:
    japanese = "このプログラムは、入力された文字列を読み込んで、結果を画面に表示します。使い方は簡単です。"
    assert measure(pa.array([japanese]))["lang"].to_pylist() == ["ja"]


def test_thresholds_move_the_decision() -> None:
    one = (GOOD[0],)
    assert judged(one) == [""]
    assert judged(one, Thresholds(min_words=1000)) == ["too short"]
    assert judged(one, Thresholds(languages=("en",))) == ["other language"]
    assert judged(one, Thresholds(min_zh_punctuation=0.5)) == ["Chinese keywords, not sentences"]
    assert judged(one, Thresholds(licenses=("BSD-3-Clause",))) == ["licence not allowed"]
