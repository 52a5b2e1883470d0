import warnings

import numpy as np

warnings.filterwarnings("ignore")
from skl2onnx import to_onnx
from sklearn.cluster import KMeans
from sklearn.datasets import load_diabetes, load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)
D, d = load_diabetes(return_X_y=True)
D = D.astype(np.float32)
out = "."
M = {
    "logreg": (LogisticRegression(max_iter=500), X, y),
    "scaled_svc": (make_pipeline(StandardScaler(), SVC(probability=True)), X, y),
    "svc": (SVC(), X, y),
    "svr": (SVR(), D, d),
    "forest": (RandomForestClassifier(8, max_depth=4, random_state=0), X, y),
    "boosting": (GradientBoostingRegressor(n_estimators=10, random_state=0), D, d),
    "isolation": (IsolationForest(n_estimators=5, random_state=0), X, None),
    "extra": (ExtraTreesRegressor(4, max_depth=4, random_state=0), D, d),
    "mlp": (MLPClassifier((8,), max_iter=300, random_state=0), X, y),
    "knn": (KNeighborsClassifier(3), X[::5], y[::5]),
    "gnb": (GaussianNB(), X, y),
    "pca": (PCA(2), X, None),
    "kmeans": (KMeans(3, n_init=2, random_state=0), X, None),
    "ridge": (Ridge(), D, d),
    "sgd": (SGDClassifier(loss="log_loss", random_state=0), X, y),
}
for n, (m, a, b) in M.items():
    try:
        m.fit(a, b) if b is not None else m.fit(a)
        kw = {}
        o = to_onnx(m, a[:1], target_opset={"": 17, "ai.onnx.ml": 3}, **kw)
        open(f"{out}/skl_{n}.onnx", "wb").write(o.SerializeToString())
    except Exception as e:
        print(n, repr(e)[:200])
try:
    import lightgbm as lgb
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType as F2

    for n, m, a, b in (
        ("lgb_multi", lgb.LGBMClassifier(n_estimators=5, num_leaves=7, verbose=-1), X, y),
        ("lgb_reg", lgb.LGBMRegressor(n_estimators=5, num_leaves=7, verbose=-1), D, d),
    ):
        m.fit(a, b)
        o = onnxmltools.convert_lightgbm(m, initial_types=[("x", F2([None, a.shape[1]]))], target_opset=15)
        open(f"{out}/{n}.onnx", "wb").write(o.SerializeToString())
except Exception as e:
    print("lgb", repr(e)[:300])
try:
    import catboost

    m = catboost.CatBoostClassifier(iterations=5, depth=3, verbose=0, allow_writing_files=False).fit(X, y)
    m.save_model(f"{out}/catboost.onnx", format="onnx")
    m = catboost.CatBoostRegressor(iterations=5, depth=3, verbose=0, allow_writing_files=False).fit(D, d)
    m.save_model(f"{out}/catboost_reg.onnx", format="onnx")
except Exception as e:
    print("cat", repr(e)[:300])
