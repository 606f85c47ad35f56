from .supervised import Digits as Digits
